package support

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
)

// redacted stands where something was that nobody else is to see.
const redacted = "[redacted]"

// secretName finds what names a secret: a member of an object, a variable, a
// flag or a header.
const secretName = `(?:passw(?:or)?d|passphrase|secret|token|credential|authorization|cookie|(?:api|private|access|signing|encryption)[_-]?key)`

// stems are in whatever secretName, scheme and webToken match, in small letters.
var stems = []string{"passw", "passphrase", "secret", "token", "credential", "authorization", "cookie", "key", "eyj", "bearer", "basic", "negotiate"}

// maxKey is longer than a private key is.
const maxKey = 16 << 10

var (
	// privateKey ends with the text where it was cut.
	privateKey = regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`)
	// keyEnd is the rest of a key whose beginning was cut off.
	keyEnd = regexp.MustCompile(`(?s)\A[A-Za-z0-9+/=\s\\]*-----END [A-Z0-9 ]*PRIVATE KEY-----`)
	// encodedPEM is base64 of what begins with "-----BEGIN", as in kubeconfigs.
	encodedPEM = regexp.MustCompile(`LS0tLS1CRUdJTi[A-Za-z0-9+/=_-]+`)
	// webToken is a JWT: its header is an object, so it begins with {" in base64.
	webToken = regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]*)*`)
	// scheme is what HTTP's Authorization header holds.
	scheme = regexp.MustCompile(`(?i)\b(bearer|basic|negotiate) +[A-Za-z0-9._~+/=-]{6,}`)
	// userinfo is that of a URL.
	userinfo = regexp.MustCompile(`://[^/\s"'@]+@`)
	// assigned is a name that speaks of a secret, and its value.
	assigned = regexp.MustCompile(`(?i)([\w.\[\]-]*` + secretName + `[\w.\[\]-]*)(["\\]*\s*[:=]\s*)(\\*"(?:[^"\\]|\\.)*"|[^\s",;&}]+)`)
	named    = regexp.MustCompile(`(?i)` + secretName)
	// pointed is a name of something about a secret, which is none.
	pointed  = regexp.MustCompile(`(?i)(?:name|path|paths|ref|file|review|reviews|namespace|seconds|expiry|audience|policy|type|kind|duration|[_-]ttl|count|total|mode|projection|prefix|prefixes|headers?|fromheaders|fromparams|fromcookies)$`)
	harmless = regexp.MustCompile(`^(?:true|false|null|\d+|/(?:etc|run|var|tmp)/[\w./-]*|\{|\[|\||\||-)$`)
)

// Text is a text without what must stay secret: private keys, tokens, and the
// values of names that speak of a secret.
func Text(text []byte) []byte {
	text = privateKey.ReplaceAll(text, []byte("[redacted private key]"))
	if begin := text[:min(len(text), maxKey)]; keyEnd.Match(begin) {
		text = slices.Concat(keyEnd.ReplaceAll(begin, []byte("[redacted private key]")), text[len(begin):])
	}
	text = encodedPEM.ReplaceAll(text, []byte(redacted))
	text = userinfo.ReplaceAll(text, []byte("://"+redacted+"@"))
	var out bytes.Buffer
	for line := range bytes.Lines(text) {
		// What looks into every word is slow, and most lines have nothing for it.
		if suspicious(line) {
			line = webToken.ReplaceAll(line, []byte(redacted))
			line = values(scheme.ReplaceAll(line, []byte("${1} "+redacted)))
		}
		out.Write(line)
	}
	return out.Bytes()
}

// suspicious reports whether a line may have something that those expressions
// find.
func suspicious(line []byte) bool {
	line = bytes.ToLower(line)
	return slices.ContainsFunc(stems, func(stem string) bool { return bytes.Contains(line, []byte(stem)) })
}

// values takes out those of names that speak of a secret.
func values(line []byte) []byte {
	return assigned.ReplaceAllFunc(line, func(match []byte) []byte {
		parts := assigned.FindSubmatch(match)
		name, value := parts[1], bytes.Trim(parts[3], `"\`)
		if pointed.Match(name) || harmless.Match(value) {
			return match
		}
		return slices.Concat(name, parts[2], []byte(`"`+redacted+`"`))
	})
}

// dropped members of objects say nothing of use and may repeat what was
// redacted.
var dropped = []string{"managedFields", "kubectl.kubernetes.io/last-applied-configuration"}

// Object is a value of JSON without what must stay secret.
func Object(value any) any {
	switch v := value.(type) {
	case map[string]any:
		return object(v)
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = Object(item)
		}
		return out
	case string:
		return string(Text([]byte(v)))
	}
	return value
}

func object(v map[string]any) map[string]any {
	out := make(map[string]any, len(v))
	// {name: DB_PASSWORD, value: ...} of containers, {key: request.headers[...],
	// values: ...} of policies.
	about := ""
	for _, member := range []string{"name", "key"} {
		if text, ok := v[member].(string); ok {
			about = text
		}
	}
	for name, member := range v {
		switch {
		case slices.Contains(dropped, name):
		case slices.Contains([]string{"value", "values", "notValues"}, name) && secret(about), secret(name):
			out[name] = hidden(member)
		case v["kind"] == "Secret" && (name == "data" || name == "stringData"), name == "jwks":
			out[name] = hidden(member)
		default:
			out[name] = Object(member)
		}
	}
	return out
}

func secret(name string) bool { return named.MatchString(name) && !pointed.MatchString(name) }

// hidden keeps the shape of a value: whether there was one, and how many.
func hidden(value any) any {
	switch v := value.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, member := range v {
			out[name] = hidden(member)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = hidden(item)
		}
		return out
	case string:
		if v == "" {
			return v
		}
		return redacted
	}
	return value // no secret is a number or a truth
}

// Document is a document without what must stay secret: JSON by its members,
// anything else as text.
func Document(text []byte) []byte {
	in := json.NewDecoder(bytes.NewReader(text))
	in.UseNumber() // large ones stay what they are
	var value any
	if err := in.Decode(&value); err != nil || strings.TrimSpace(string(text[in.InputOffset():])) != "" {
		return Text(text)
	}
	out, err := json.MarshalIndent(Object(value), "", "  ")
	if err != nil {
		return Text(text)
	}
	return append(out, '\n')
}
