package bypass

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// List is an answer of the API.
type List struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Bypass `json:"items"`
}

// AddToScheme makes the kind known to clients of the API.
func AddToScheme(s *runtime.Scheme) error {
	group := GroupVersion()
	s.AddKnownTypeWithName(group.WithKind("Bypass"), &Bypass{})
	s.AddKnownTypeWithName(group.WithKind("BypassList"), &List{})
	metav1.AddToGroupVersion(s, group)
	return nil
}

// GroupVersion is Version, taken apart.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "policy.tacit.mesh", Version: "v1alpha1"}
}

// DeepCopyObject implements [runtime.Object].
func (b *Bypass) DeepCopyObject() runtime.Object { return b.copy() }

func (b *Bypass) copy() *Bypass {
	out := *b
	b.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Until, out.Spec.Since = b.Spec.Until.DeepCopy(), b.Spec.Since.DeepCopy()
	if b.Status != nil {
		out.Status = runtime.DeepCopyJSONValue(b.Status)
	}
	return &out
}

// DeepCopyObject implements [runtime.Object].
func (l *List) DeepCopyObject() runtime.Object {
	out := *l
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	out.Items = nil
	for i := range l.Items {
		out.Items = append(out.Items, *l.Items[i].copy())
	}
	return &out
}
