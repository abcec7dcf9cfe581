{{/* labels of every object; call with a dict of root and name */}}
{{- define "tacit.labels" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/part-of: tacit
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- end }}

{{/* selector finds the pods of one program */}}
{{- define "tacit.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* podLabels: what selects them, and that they are in no mesh themselves */}}
{{- define "tacit.podLabels" -}}
{{ include "tacit.labels" . }}
tacit.mesh/dataplane: disabled
{{- end }}

{{/* podAnnotations; port is that of the metrics */}}
{{- define "tacit.podAnnotations" -}}
kubectl.kubernetes.io/default-container: {{ .name }}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}

{{/* image of one program, by its name */}}
{{- define "tacit.image" -}}
{{ with .root.Values.image.registry }}{{ . }}/{{ end }}{{ .name }}:{{ .root.Values.image.tag | default .root.Chart.AppVersion }}
{{- end }}

{{/* pull: how to pull the images of a pod */}}
{{- define "tacit.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* confined is what containers may do that need no privilege at all */}}
{{- define "tacit.confined" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* skips are the flags that tacitd and all agents share */}}
{{- define "tacit.meshFlags" -}}
- --trust-domain={{ .Values.trustDomain }}
- --skips={{ .Values.skips.mode }}
{{- with .Values.skips.ports }}
- --skip-ports={{ . }}
{{- end }}
- --max-bypass={{ .Values.bypass.max }}
{{- end }}

{{/* otlpFlags are those about the collector */}}
{{- define "tacit.otlpFlags" -}}
{{- with .Values.otlp }}
{{- if .endpoint }}
- --otlp={{ .endpoint }}
{{- end }}
{{- if .rootConfigMap }}
- --otlp-root=/var/run/otlp/ca.crt
{{- end }}
{{- if .headersSecret }}
- --otlp-headers=/var/run/otlp/headers
{{- end }}
{{- if .audit }}
- --audit-otlp
{{- end }}
{{- end }}
{{- end }}

{{/* otlpVolume has what they name; where there is a collector with TLS. Nobody waits for it: the files are read once they are there */}}
{{- define "tacit.otlpVolume" -}}
- name: otlp
  projected:
    sources:
    - configMap:
        name: {{ .Values.otlp.rootConfigMap | quote }}
        optional: true
        items:
        - {key: ca.crt, path: ca.crt}
    {{- with .Values.otlp.headersSecret }}
    - secret:
        name: {{ . | quote }}
        optional: true
        items:
        - {key: headers, path: headers}
    {{- end }}
{{- end }}

{{/* server is tacitd's DNS name, also in its certificate */}}
{{- define "tacit.server" -}}
tacitd.{{ .Release.Namespace }}.svc
{{- end }}

{{/* agentRequests has a policy of admission concern the agents alone */}}
{{- define "tacit.agentRequests" -}}
matchConditions:
- name: agent
  expression: request.userInfo.username == 'system:serviceaccount:{{ .Release.Namespace }}:tacit-agent'
{{- end }}

{{/* agentNode compares variables.node with the node that the API server has
     put into the agent's token */}}
{{- define "tacit.agentNode" -}}
- expression: variables.node != '' && request.userInfo.?extra['authentication.kubernetes.io/node-name'].orValue([]) == [variables.node]
  messageExpression: >-
    'tacit-agent changes only what is on its own node, and this is on "' + variables.node + '"'
{{- end }}

{{/* policyBinding puts a policy of admission into force, by name */}}
{{- define "tacit.policyBinding" }}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  labels: {{- .labels | nindent 4 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
{{- end }}
