package otlp

import (
	"strings"

	common "go.opentelemetry.io/proto/otlp/common/v1"
)

// Attributes are those of a span, record or resource. What has no value is left
// out.
type Attributes []*common.KeyValue

// String adds a text unless it is empty.
func (a *Attributes) String(key, value string) {
	if value != "" {
		a.add(key, &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: Text(value)}})
	}
}

// Text is a text that OTLP can carry: protobuf refuses a whole message for one byte
// that is not of UTF-8.
func Text(text string) string { return strings.ToValidUTF8(text, "?") }

// Int adds a number.
func (a *Attributes) Int(key string, value int64) {
	a.add(key, &common.AnyValue{Value: &common.AnyValue_IntValue{IntValue: value}})
}

// Float adds a number that need not be whole.
func (a *Attributes) Float(key string, value float64) {
	a.add(key, &common.AnyValue{Value: &common.AnyValue_DoubleValue{DoubleValue: value}})
}

func (a *Attributes) add(key string, value *common.AnyValue) {
	*a = append(*a, &common.KeyValue{Key: key, Value: value})
}
