package http

import (
	"net/http"
	"strconv"
)

// idField tells a client that was refused which connection to ask about.
const idField = "tacit-connection-id"

// answer1 writes a refusal in HTTP/1. Behind it the connection goes on, or
// ends where the request's body is not worth waiting for.
func answer1(to Side, stalled func() error, refusal *Refusal, id, method string, last bool) error {
	text := refusal.Message
	if text == "" {
		text = http.StatusText(refusal.Status)
	}
	text += "\n" + idField + ": " + id + "\n"
	b := make([]byte, headRoom, 512)
	b = append(b, "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(refusal.Status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(refusal.Status)...)
	b = append(b, "\r\ncontent-type: text/plain\r\ncontent-length: "...)
	b = strconv.AppendInt(b, int64(len(text)), 10)
	b = append(b, "\r\n"+idField+": "...)
	b = append(b, id...)
	b = append(b, "\r\n"...)
	for _, f := range refusal.Fields {
		b = append(b, f.Name+": "+f.Value+"\r\n"...)
	}
	if last {
		b = append(b, "connection: close\r\n"...)
	}
	b = append(b, "\r\n"...)
	if method != "HEAD" {
		b = append(b, text...)
	}
	return to.Send(b, headRoom, stalled)
}
