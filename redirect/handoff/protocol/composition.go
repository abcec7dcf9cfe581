package protocol

import (
	"google.golang.org/protobuf/proto"

	"github.com/tacit-mesh/tacit/xds/model"
)

// Composes is the first version in which AddPod says of what a pod consists.
const Composes = 2

// MaxComposition bounds the length of what is said of a pod's containers and
// owners.
const MaxComposition = 16 << 10

// LengthOfComposition is how many bytes it takes in a message.
func LengthOfComposition(c model.Composition) int {
	m := new(AddPod)
	m.Compose(c)
	return proto.Size(m)
}

// Compose says of what the pod consists and what has made it.
func (x *AddPod) Compose(c model.Composition) {
	x.Containers, x.Owners = nil, nil
	for _, one := range c.Containers {
		x.Containers = append(x.Containers, &Container{
			Name: one.Name, Init: one.Init, Image: one.Image, ImageId: one.ImageID, Started: one.Started,
		})
	}
	for _, o := range c.Owners {
		x.Owners = append(x.Owners, &Owner{Kind: o.Kind, Name: o.Name, Uid: o.UID})
	}
}

// Composition is what Compose has said.
func (x *AddPod) Composition() (c model.Composition) {
	for _, one := range x.GetContainers() {
		c.Containers = append(c.Containers, model.Container{
			Name: one.GetName(), Init: one.GetInit(), Image: one.GetImage(), ImageID: one.GetImageId(), Started: one.GetStarted(),
		})
	}
	for _, o := range x.GetOwners() {
		c.Owners = append(c.Owners, model.Owner{Kind: o.GetKind(), Name: o.GetName(), UID: o.GetUid()})
	}
	return c
}
