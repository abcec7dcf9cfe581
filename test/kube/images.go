package kube

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// image is a container image of one layer and the name it has in the cluster.
type image struct {
	ref   name.Tag
	image v1.Image
}

// file is a file of an image: a copy of one of this machine, or of a whole
// directory. Links stay links within a directory.
type file struct{ From, To string }

// newImage makes an image. Its name in the cluster is that of its registry,
// what, and the tag; without a tag, one by its content, so that no node runs an
// older one of that name.
func (c *Cluster) newImage(what, tag string, config v1.Config, files []file) (image, error) {
	layer, err := newLayer(files)
	if err != nil {
		return image{}, fmt.Errorf("image %s: %w", what, err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return image{}, err
	}
	configFile, err := img.ConfigFile()
	if err != nil {
		return image{}, err
	}
	configFile = configFile.DeepCopy()
	configFile.OS, configFile.Architecture, configFile.Config = "linux", runtime.GOARCH, config
	if img, err = mutate.ConfigFile(img, configFile); err != nil {
		return image{}, err
	}
	if tag == "" {
		digest, err := img.Digest()
		if err != nil {
			return image{}, err
		}
		tag = digest.Hex[:12]
	}
	ref, err := name.NewTag(c.Registry() + "/" + what + ":" + tag)
	return image{ref: ref, image: img}, err
}

// Registry is what the names of all images begin with.
func (c *Cluster) Registry() string { return cmp.Or(c.registry, "tacit.test") }

// newLayer is not compressed: it goes no further than this machine, as a rule.
func newLayer(files []file) (v1.Layer, error) {
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	made := map[string]bool{".": true, "/": true}
	for _, f := range slices.Concat([]file{{To: "/tmp/"}}, files) {
		if err := addDirectories(w, path.Dir(f.To), made); err != nil {
			return nil, err
		}
		if f.From == "" {
			continue
		}
		err := filepath.WalkDir(f.From, func(from string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			below, err := filepath.Rel(f.From, from)
			if err != nil {
				return err
			}
			to := path.Join(f.To, below)
			if entry.IsDir() {
				return addDirectories(w, to, made)
			}
			return addFile(w, file{From: from, To: to})
		})
		if err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return static.NewLayer(archive.Bytes(), types.DockerUncompressedLayer), nil
}

func addDirectories(w *tar.Writer, dir string, made map[string]bool) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := addDirectories(w, path.Dir(dir), made); err != nil {
		return err
	}
	mode := int64(0o755)
	if dir == "/tmp" {
		mode = 0o1777
	}
	return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir[1:] + "/", Mode: mode})
}

func addFile(w *tar.Writer, f file) error {
	st, err := os.Lstat(f.From)
	if err != nil {
		return err
	}
	header := &tar.Header{Typeflag: tar.TypeReg, Name: f.To[1:], Mode: int64(st.Mode().Perm()), Size: st.Size()}
	if st.Mode()&fs.ModeSymlink != 0 {
		header.Typeflag, header.Size = tar.TypeSymlink, 0
		if header.Linkname, err = os.Readlink(f.From); err != nil {
			return err
		}
		return w.WriteHeader(header)
	}
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	in, err := os.Open(f.From)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	_, err = io.Copy(w, in)
	return err
}

// publish makes images available to every node.
func (c *Cluster) publish(ctx context.Context, images ...image) error {
	if !c.Ours() {
		for _, i := range images {
			err := remote.Write(i.ref, i.image, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
			if err != nil {
				return fmt.Errorf("push %s: %w", i.ref, err)
			}
		}
		return nil
	}
	for _, node := range c.nodes {
		if err := node.load(ctx, images...); err != nil {
			return err
		}
	}
	return nil
}

// load puts images into the node's containerd, as soon as that is there.
func (n *Node) load(ctx context.Context, images ...image) error {
	if err := n.awaitContainerd(ctx); err != nil {
		return err
	}
	refs := map[name.Reference]v1.Image{}
	for _, i := range images {
		refs[i.ref] = i.image
	}
	cmd := n.Command(ctx, "ctr", "--namespace", "k8s.io", "images", "import", "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	err = errors.Join(tarball.MultiRefWrite(refs, in), in.Close(), cmd.Wait())
	if err != nil {
		return fmt.Errorf("load images on %s: %w: %s", n.Name, err, out.String())
	}
	return nil
}

// AppImage is the name of the image that pods of tests run.
func (c *Cluster) AppImage(ctx context.Context) (string, error) {
	app, err := c.appImage()
	if err != nil || c.Ours() { // there is one on every node from the beginning
		return app.ref.Name(), err
	}
	return app.ref.Name(), c.publish(ctx, app)
}

// appImage is both what pods run in these tests and what holds their
// namespaces.
func (c *Cluster) appImage() (image, error) {
	return c.newImage("app", "", v1.Config{Entrypoint: []string{"/app"}}, []file{{filepath.Join(c.programs, "app"), "/app"}})
}

func (c *Cluster) dnsImage() (image, error) {
	return c.newImage("coredns", "", v1.Config{Entrypoint: []string{"/coredns"}}, []file{{filepath.Join(c.binaries, "coredns"), "/coredns"}})
}
