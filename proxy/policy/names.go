package policy

// SameName reports whether an application may take two names of headers for the
// same: without regard to case, and with "_" for "-", as CGI and what is built
// like it have it. What only the proxy or a provider may say is to be taken off
// in any of these spellings.
func SameName(a, b string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range len(a) {
		if spelled(a[i]) != spelled(b[i]) {
			return false
		}
	}
	return true
}

func spelled(c byte) byte {
	switch {
	case 'A' <= c && c <= 'Z':
		return c + 'a' - 'A'
	case c == '_':
		return '-'
	}
	return c
}
