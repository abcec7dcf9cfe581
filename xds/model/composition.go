package model

import "slices"

// Composition is what a pod consists of, and what has made it, as the API
// says: facts on which an identity may depend.
type Composition struct {
	Containers []Container
	Owners     []Owner
}

// Container is one of a pod's containers.
type Container struct {
	Name string
	Init bool // it runs before the others
	// Image and ImageID are the image's name and its digest, empty as long as
	// they are not known.
	Image, ImageID string
	Started        bool // it runs, or has run
}

// Owner is an object that has made a pod, such as a ReplicaSet.
type Owner struct{ Kind, Name, UID string }

// Equal reports whether both say the same.
func (c Composition) Equal(other Composition) bool {
	return slices.Equal(c.Containers, other.Containers) && slices.Equal(c.Owners, other.Owners)
}
