package manifests

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// merge joins what the files say now with what was in force before, and
// returns what is in force from now on.
func (s *scan) merge(before map[Key]Object) (map[Key]Object, []error) {
	now := map[Key]Object{}
	errs := slices.Clone(s.errs)
	for _, f := range s.files {
		errs = append(errs, f.errs...)
		for _, o := range f.objects {
			if err := claim(now, before, o); err != nil {
				errs = append(errs, err)
			}
		}
	}
	for key, o := range before {
		if _, claimed := now[key]; !claimed && s.mayStill(o) {
			now[key] = o
		}
	}
	slices.SortStableFunc(errs, byPlace)
	return now, errs
}

// claim enters an object. Of two of one name that stays which was there
// before, else the one that comes first in the order of files.
func claim(now, before map[Key]Object, o Object) error {
	other, taken := now[o.Key]
	if !taken {
		now[o.Key] = o
		return nil
	}
	winner, loser := other, o
	if old, ok := before[o.Key]; ok && old.File == o.File && old.File != other.File {
		winner, loser = o, other
		now[o.Key] = o
	}
	return &Error{File: loser.File, Line: loser.Line, Field: "metadata.name", Kind: o.Kind,
		Err: fmt.Errorf("%s is also at %s:%d, which is the one in force", o.Key, winner.File, winner.Line)}
}

// mayStill reports whether an object that no file shows now may only be
// hidden by an error, so that its last good version stays.
func (s *scan) mayStill(o Object) bool {
	for _, path := range s.lost {
		if o.File == path || strings.HasPrefix(o.File, path+"/") {
			return true
		}
	}
	for _, f := range s.files {
		if f.opaque && f.path == o.File || slices.Contains(f.failed, o.Key) {
			return true
		}
	}
	return false
}

func byPlace(a, b error) int {
	var x, y *Error
	if !errors.As(a, &x) || !errors.As(b, &y) {
		return strings.Compare(a.Error(), b.Error())
	}
	return cmp.Or(strings.Compare(x.File, y.File), cmp.Compare(x.Line, y.Line))
}

func sorted(objects map[Key]Object) []Object {
	return slices.SortedFunc(maps.Values(objects), func(a, b Object) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.Kind, b.Kind),
			strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
}
