package model

import (
	"fmt"
	"strings"
)

// The operators of path templates.
const (
	oneSegment  = "{*}"
	anySegments = "{**}"
)

// ParsePathMatch reads a path in Istio's notation: one of [ParseStringMatch],
// or a template, in which {*} stands for one segment and {**}, the last
// operator, for any text.
func ParsePathMatch(s string) (StringMatch, error) {
	if !strings.Contains(s, oneSegment) && !strings.Contains(s, anySegments) {
		return ParseStringMatch(s), nil
	}
	if !strings.HasPrefix(s, "/") {
		return StringMatch{}, fmt.Errorf("path template %q does not begin with /", s)
	}
	last := false
	for segment := range strings.SplitSeq(s[1:], "/") {
		operator := segment == oneSegment || segment == anySegments
		switch {
		case !operator && strings.ContainsAny(segment, "*{}"):
			return StringMatch{}, fmt.Errorf("path template %q: segment %q: an operator {*} or {**} stands alone, and there are no others", s, segment)
		case operator && last:
			return StringMatch{}, fmt.Errorf("path template %q: {**} is not the last operator", s)
		}
		last = last || segment == anySegments
	}
	return StringMatch{Kind: MatchTemplate, Value: s}, nil
}

// matchesTemplate takes a template that ParsePathMatch has accepted.
func matchesTemplate(template, path string) bool {
	for {
		literal := strings.IndexByte(template, '{')
		if literal < 0 {
			return path == template
		}
		if len(path) < literal || path[:literal] != template[:literal] {
			return false
		}
		path, template = path[literal:], template[literal:]
		if tail, ok := strings.CutPrefix(template, anySegments); ok {
			return strings.HasSuffix(path, tail)
		}
		end := strings.IndexByte(path, '/')
		if end < 0 {
			end = len(path)
		}
		if end == 0 {
			return false
		}
		path, template = path[end:], strings.TrimPrefix(template[1:], oneSegment[1:])
	}
}
