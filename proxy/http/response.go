package http

import (
	"strings"
)

// parseResponse reads a head of the application's: its status, and how its
// body is framed for a request with this method.
func (h *head1) parseResponse(text, method string) (status int, err error) {
	h.text, h.lines, h.edits, h.body = text, h.lines[:0], h.edits[:0], body{}
	end := strings.IndexByte(text, '\n')
	h.first = end + 1
	status, minor, err := statusLine(text[:end-1])
	if err != nil {
		return 0, err
	}
	if h.lines, err = fieldLines(text, h.first, h.lines); err != nil {
		return status, err
	}
	lengths, length, codings, coding := 0, "", 0, ""
	for i := range h.lines {
		f := h.lines[i].Field
		switch {
		case strings.EqualFold(f.Name, "content-length"):
			if lengths > 0 && f.Value != length {
				return status, malformed(502, "a response with two lengths")
			}
			lengths++
			length = f.Value
		case strings.EqualFold(f.Name, "transfer-encoding"):
			codings++
			coding = f.Value
		}
	}
	switch n, ok := decimal(length); {
	case status < 200 || status == 204 || status == 304 || method == "HEAD":
	case method == "CONNECT" && status < 300:
	case codings > 0 && (lengths > 0 || minor == 0):
		return status, malformed(502, "a response with Transfer-Encoding beside Content-Length, or in HTTP/1.0")
	case codings > 0 && lastCoding(coding) == "chunked" && codings == 1:
		h.body.kind = bodyChunked
	case codings > 0:
		return status, malformed(502, "a response with a transfer coding that does not end with chunked")
	case lengths > 0 && !ok:
		return status, malformed(502, "a response with an invalid Content-Length")
	case lengths > 0:
		h.body.kind, h.body.left = bodyLength, n
	default:
		h.body.kind = bodyUntilEnd
	}
	return status, nil
}

func lastCoding(list string) (last string) {
	tokens(list, func(coding string) bool {
		last = strings.ToLower(coding)
		return true
	})
	return last
}

// statusLine reads "HTTP/1.x STATUS[ REASON]".
func statusLine(text string) (status, minor int, err error) {
	version, rest, _ := strings.Cut(text, " ")
	code, reason, _ := strings.Cut(rest, " ")
	n, ok := decimal(code)
	if (version != "HTTP/1.1" && version != "HTTP/1.0") || len(code) != 3 || !ok || n < 100 || !isValue(reason) {
		return 0, 0, malformed(502, "a response without a status line of HTTP/1")
	}
	return int(n), int(version[7] - '0'), nil
}

// upgrades reports whether a response of status 101 is to a WebSocket.
func (h *head1) upgrades() bool {
	for i := range h.lines {
		if strings.EqualFold(h.lines[i].Name, "upgrade") {
			return strings.EqualFold(h.lines[i].Value, "websocket")
		}
	}
	return false
}
