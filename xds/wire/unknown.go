package wire

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// enum is a generated enumeration.
type enum interface {
	Descriptor() protoreflect.EnumDescriptor
	Number() protoreflect.EnumNumber
}

// known reports whether this version's schema has the number.
func known(e enum) bool { return e.Descriptor().Values().ByNumber(e.Number()) != nil }

// ownUnknown describes the first field of m itself, not of its nested
// messages, that this version's schema does not have; empty if it has all.
func ownUnknown(m protoreflect.Message, path string) string {
	raw := m.GetUnknown()
	if len(raw) == 0 {
		return ""
	}
	number, _, _ := protowire.ConsumeTag(raw)
	return fmt.Sprintf("%s: unknown field %d", path, number)
}

// anyUnknown is ownUnknown for m and everything nested in it, in the order of
// the schema. Messages inside an Any are not seen.
func anyUnknown(m protoreflect.Message, path string) string {
	if found := ownUnknown(m, path); found != "" {
		return found
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		field := fields.Get(i)
		if field.Message() == nil || field.IsMap() || !m.Has(field) {
			continue // no policy message has a map
		}
		at := path + "." + string(field.Name())
		if !field.IsList() {
			if found := anyUnknown(m.Get(field).Message(), at); found != "" {
				return found
			}
			continue
		}
		list := m.Get(field).List()
		for j := range list.Len() {
			if found := anyUnknown(list.Get(j).Message(), fmt.Sprintf("%s[%d]", at, j)); found != "" {
				return found
			}
		}
	}
	return ""
}
