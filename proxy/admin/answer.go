package admin

import (
	"bufio"
	"encoding/json"
	"net/http"
)

// problem is the answer to a question that cannot be answered.
type problem struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, document any) { answerWith(w, http.StatusOK, document) }

func answerWith(w http.ResponseWriter, code int, document any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	_ = out.Encode(document) // fails only when the client is gone
}

// encoder writes one JSON object whose members are long lists, element by
// element: the whole text is never in memory. Errors mean that the client is
// gone; bufio keeps the first and writes nothing after it.
type encoder struct {
	out     *bufio.Writer
	members int
}

func stream(w http.ResponseWriter, write func(*encoder)) {
	w.Header().Set("Content-Type", "application/json")
	e := &encoder{out: bufio.NewWriter(w)}
	_, _ = e.out.WriteString("{")
	write(e)
	_, _ = e.out.WriteString("\n}\n")
	_ = e.out.Flush()
}

func (e *encoder) name(name string) {
	if e.members++; e.members > 1 {
		_, _ = e.out.WriteString(",")
	}
	_, _ = e.out.WriteString("\n  ")
	e.text(name)
	_, _ = e.out.WriteString(": ")
}

func (e *encoder) text(v any) {
	text, err := json.Marshal(v)
	if err != nil {
		text = []byte("null")
	}
	_, _ = e.out.Write(text)
}

func (e *encoder) member(name string, v any) {
	e.name(name)
	e.text(v)
}

func asIs[T any](v T) any { return v }

func writeList[T any](e *encoder, name string, items []T, shown func(T) any) {
	e.name(name)
	_, _ = e.out.WriteString("[")
	for i := range items {
		if i > 0 {
			_, _ = e.out.WriteString(",")
		}
		_, _ = e.out.WriteString("\n    ")
		e.text(shown(items[i]))
	}
	_, _ = e.out.WriteString("]")
}
