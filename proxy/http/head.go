package http

import (
	"fmt"
	"strings"
)

// MalformedError says why a message is refused without a decision.
type MalformedError struct {
	Status int // to answer with
	Text   string
}

func (e *MalformedError) Error() string { return "malformed HTTP: " + e.Text }

func malformed(status int, format string, args ...any) error {
	return &MalformedError{Status: status, Text: fmt.Sprintf(format, args...)}
}

// line is a field and where its line stands in the head.
type line struct {
	Field
	start, end int
}

// fieldLines parses the lines behind the first one of a head that ends with an
// empty line, all of which end with CR LF.
func fieldLines(head string, at int, lines []line) ([]line, error) {
	for {
		i := strings.IndexByte(head[at:], '\n')
		text := head[at : at+i-1]
		if text == "" {
			return lines, nil
		}
		f, err := fieldLine(text)
		if err != nil {
			return lines, err
		}
		if len(lines) == maxFields {
			return lines, malformed(431, "more than %d header fields", maxFields)
		}
		lines = append(lines, line{f, at, at + i + 1})
		at += i + 1
	}
}

// maxFields bounds what a decision may have to look at.
const maxFields = 500

// fieldLine parses one line without its CR LF. A line that continues the one
// before, and space in front of the colon, are refused: parsers differ in what
// they make of these (RFC 9112 section 5).
func fieldLine(text string) (Field, error) {
	colon := strings.IndexByte(text, ':')
	switch {
	case text[0] == ' ' || text[0] == '\t':
		return Field{}, malformed(400, "a header line that continues another")
	case colon <= 0:
		return Field{}, malformed(400, "a header line without a name")
	case !isToken(text[:colon]):
		return Field{}, malformed(400, "an invalid header name")
	}
	value := strings.Trim(text[colon+1:], " \t")
	if !isValue(value) {
		return Field{}, malformed(400, "an invalid character in the value of %.64s", text[:colon])
	}
	return Field{Name: text[:colon], Value: value}, nil
}

// The classes of characters of RFC 9110 section 5.6.2 and RFC 3986.
const (
	inToken = 1 << iota
	inValue
	inTarget
	inHost
)

var classes = makeClasses()

func makeClasses() (table [256]uint8) {
	for c := range 256 {
		b := byte(c)
		alphanumeric := b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9'
		if alphanumeric || strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0 {
			table[c] |= inToken
		}
		if b >= ' ' && b != 0x7f || b == '\t' {
			table[c] |= inValue
		}
		if b > ' ' && b != 0x7f && b != '#' {
			table[c] |= inTarget
		}
		if alphanumeric || strings.IndexByte("-._~%!$&'()*+;=:[]", b) >= 0 {
			table[c] |= inHost
		}
	}
	return table
}

func all(s string, class uint8) bool {
	for i := range len(s) {
		if classes[s[i]]&class == 0 {
			return false
		}
	}
	return true
}

func isToken(s string) bool { return s != "" && all(s, inToken) }
func isValue(s string) bool { return all(s, inValue) }

// tokens calls each with the members of a comma-separated list, until it
// returns false.
func tokens(list string, each func(string) bool) {
	for list != "" {
		var one string
		one, list, _ = strings.Cut(list, ",")
		if one = strings.Trim(one, " \t"); one != "" && !each(one) {
			return
		}
	}
}

// decimal reads a length: digits alone, within an int64.
func decimal(s string) (n int64, ok bool) {
	if s == "" || len(s) > 18 {
		return 0, false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(s[i]-'0')
	}
	return n, true
}
