package policy

import (
	"errors"
	"strings"

	"github.com/tacit-mesh/tacit/xds/model"
)

// NormalizePath brings the path of a request, without its query, to the form
// that policies are about and that is to be forwarded. An error means that the
// request is to be refused as malformed.
//
// Escapes are decoded once. One of zero, one without two hexadecimal digits,
// "#", blanks and control characters are refused in every mode; other
// characters that may not stand in a path are escaped unless the mode is
// NormalizeNone. "*" is the whole of a path where OPTIONS has it.
func NormalizePath(mode model.PathNormalization, path string) (string, error) {
	if path == "*" {
		return path, nil
	}
	if !strings.HasPrefix(path, "/") && (mode == model.NormalizeNone || !strings.HasPrefix(path, `\`)) {
		return "", errors.New("the path does not begin with /")
	}
	if err := checkPath(path); err != nil {
		return "", err
	}
	if mode == model.NormalizeNone || isNormal(mode, path) {
		return path, nil
	}
	out := rewrite(mode, path)
	out = withoutDots(out)
	if mode != model.NormalizeBase {
		out = mergeSlashes(out)
	}
	return string(out), nil
}

func checkPath(path string) error {
	for i := range len(path) {
		switch c := path[i]; {
		case c <= ' ' || c == 0x7f:
			return errors.New("the path has a blank or a control character")
		case c == '#':
			return errors.New("the path has a fragment (#)")
		case c != '%':
		case i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]):
			return errors.New("the path has a % without two hexadecimal digits")
		case path[i+1] == '0' && path[i+2] == '0':
			return errors.New("the path has an escaped zero (%00)")
		}
	}
	return nil
}

// isNormal finds most paths that are in the wanted form already. Behind a slash
// it takes any dot for the beginning of a segment to remove.
func isNormal(mode model.PathNormalization, path string) bool {
	for i := range len(path) {
		c := path[i]
		if c == '%' || c == '\\' || mustEscape(c) {
			return false
		}
		if i == 0 || path[i-1] != '/' {
			continue
		}
		if c == '.' || c == '/' && mode != model.NormalizeBase {
			return false
		}
	}
	return true
}

// rewrite decodes and escapes.
func rewrite(mode model.PathNormalization, path string) []byte {
	const digits = "0123456789ABCDEF"
	out := make([]byte, 0, len(path)+16)
	for i := 0; i < len(path); i++ {
		c := path[i]
		switch {
		case c == '\\':
			out = append(out, '/')
		case c == '%':
			decoded := unhex(path[i+1])<<4 | unhex(path[i+2])
			slash := decoded == '/' || decoded == '\\'
			switch {
			case slash && mode == model.NormalizeDecodeAndMergeSlashes:
				out = append(out, '/')
			case isUnreserved(decoded):
				out = append(out, decoded)
			default:
				out = append(out, path[i:i+3]...)
			}
			i += 2
		case mustEscape(c):
			out = append(out, '%', digits[c>>4], digits[c&15])
		default:
			out = append(out, c)
		}
	}
	return out
}

// withoutDots removes segments of one and two dots, in place (RFC 3986, section
// 5.2.4).
func withoutDots(path []byte) []byte {
	out := path[:0]
	for i := 0; i < len(path); {
		end := i + 1 // path[i] is a slash
		for end < len(path) && path[end] != '/' {
			end++
		}
		segment := string(path[i+1 : end])
		last := end == len(path)
		switch segment {
		case ".":
		case "..":
			if slash := strings.LastIndexByte(string(out), '/'); slash >= 0 {
				out = out[:slash]
			}
		default:
			out = append(out, path[i:end]...)
		}
		if last && (segment == "." || segment == "..") {
			out = append(out, '/')
		}
		i = end
	}
	return out
}

func mergeSlashes(path []byte) []byte {
	out := path[:0]
	for _, c := range path {
		if c == '/' && len(out) > 0 && out[len(out)-1] == '/' {
			continue
		}
		out = append(out, c)
	}
	return out
}

// mustEscape: characters that may not stand in a path as they are, and that
// origins disagree about.
func mustEscape(c byte) bool {
	return c >= 0x80 || c == '"' || c == '<' || c == '>' || c == '?' || c == '`'
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}
