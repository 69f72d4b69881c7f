// Package images builds the container images that the conformance tests want, from Go modules and Debian packages, and packs them all
// into one archive that a node loads. No registry is asked for anything.
//
// Names and tags come from the suite's own list, so that a new version of the suite names new images. Which of that list the
// conformance tests use is in the table below; a test holds the table against the suite's source. Images share layers: most stand on
// one Debian root file system, as their originals stand on Alpine's.
package images

import (
	"slices"

	suite "k8s.io/kubernetes/test/utils/image"
)

// recipe says what an image is made of.
type recipe struct {
	image      suite.ImageID
	layers     []string // names of layers, lowest first; see layers.go
	user       string
	entrypoint []string
	command    []string
}

// recipes are all images that are built.
func recipes() []recipe {
	agnhost, pause := []string{"/agnhost"}, []string{"pause"}
	return []recipe{
		{image: suite.Agnhost, layers: []string{"debian", "agnhost"}, entrypoint: agnhost, command: pause},
		// The one before differs in its tag: tests that update an image want two names.
		{image: suite.AgnhostPrev, layers: []string{"debian", "agnhost"}, entrypoint: agnhost, command: pause},
		{image: suite.Kitten, layers: []string{"debian", "agnhost", "kitten"}, entrypoint: agnhost, command: []string{"test-webserver"}},
		{image: suite.Nautilus, layers: []string{"debian", "agnhost", "nautilus"}, entrypoint: agnhost, command: []string{"test-webserver"}},
		{image: suite.GlibcDnsTesting, layers: []string{"debian"}, command: []string{"/bin/bash"}},
		{image: suite.Nginx, layers: []string{"debian", "nginx"}, command: []string{"nginx", "-g", "daemon off;"}},
		{image: suite.NginxNew, layers: []string{"debian", "nginx"}, command: []string{"nginx", "-g", "daemon off;"}},
		{image: suite.BusyBox, layers: []string{"busybox"}, command: []string{"sh"}},
		{image: suite.NonRoot, layers: []string{"busybox"}, user: "1234", command: []string{"sh"}},
		{image: suite.Nonewprivs, layers: []string{"busybox", "nonewprivs"}, command: []string{"nnp"}},
		{image: suite.APIServer, layers: []string{"busybox", "sample-apiserver"}, entrypoint: []string{"/sample-apiserver"}},
		{image: suite.Etcd, layers: []string{"busybox", "etcd"}, command: []string{"etcd"}},
	}
}

// carried are images that every node has by itself.
func carried() []suite.ImageID { return []suite.ImageID{suite.Pause} }

// Wanted returns the names of the images that must be on a node before the tests start, sorted.
func Wanted() []string {
	ids := carried()
	for _, r := range recipes() {
		ids = append(ids, r.image)
	}
	var names []string
	for _, id := range ids {
		names = append(names, suite.GetE2EImage(id))
	}
	slices.Sort(names)
	return names
}

// Missing returns the wanted images that are not among those present.
func Missing(present []string) []string {
	return slices.DeleteFunc(Wanted(), func(name string) bool { return slices.Contains(present, name) })
}
