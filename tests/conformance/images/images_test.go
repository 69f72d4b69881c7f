package images_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	suite "k8s.io/kubernetes/test/utils/image"

	"github.com/atollhq/atoll/tests/conformance/images"
)

// ids are the images that the source of the conformance tests names, by the name used there.
var ids = map[string]suite.ImageID{
	"Agnhost": suite.Agnhost, "AgnhostPrev": suite.AgnhostPrev, "APIServer": suite.APIServer, "BusyBox": suite.BusyBox, "Etcd": suite.Etcd,
	"GlibcDnsTesting": suite.GlibcDnsTesting, "Kitten": suite.Kitten, "Nautilus": suite.Nautilus, "Nginx": suite.Nginx, "NginxNew": suite.NginxNew,
	"Nonewprivs": suite.Nonewprivs, "NonRoot": suite.NonRoot, "Pause": suite.Pause,
	// Never to be had: tests want their pull to fail.
	"InvalidRegistryImage": suite.InvalidRegistryImage, "AgnhostPrivate": suite.AgnhostPrivate,
}

// TestEveryImageOfTheConformanceTestsIsMade reads the source files that hold conformance tests and looks for images that nobody builds.
// Such an image would cost 15 minutes per test that uses it.
func TestEveryImageOfTheConformanceTestsIsMade(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		t.Fatalf("find the suite's source: %v", err)
	}
	module := strings.TrimSpace(string(out))
	list, err := os.ReadFile(filepath.Join(module, "test/conformance/testdata/conformance.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile(`(?m)^\s+file: (\S+)$`).FindAllStringSubmatch(string(list), -1)
	if len(files) < 400 {
		t.Fatalf("the list of conformance tests has %d entries, want at least 400", len(files))
	}
	used := map[string]string{}
	uses := regexp.MustCompile(`imageutils\.([A-Z]\w+)`)
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(module, f[1]))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range uses.FindAllStringSubmatch(string(text), -1) {
			used[m[1]] = f[1]
		}
	}
	for _, function := range []string{"GetE2EImage", "GetPauseImageName", "GetConfig", "GetImageConfigs", "ImageID"} {
		delete(used, function)
	}
	if len(used) < 10 {
		t.Fatalf("found only %d images in the source: %v", len(used), used)
	}
	wanted := images.Wanted()
	for name, file := range used {
		id, known := ids[name]
		if !known {
			t.Errorf("image %s, used in %s, is not in the table: add a recipe", name, file)
			continue
		}
		never := id == suite.InvalidRegistryImage || id == suite.AgnhostPrivate
		if slices.Contains(wanted, suite.GetE2EImage(id)) == never {
			t.Errorf("image %s, used in %s: wanted is %v", suite.GetE2EImage(id), file, !never)
		}
	}
}

func TestMissing(t *testing.T) {
	wanted := images.Wanted()
	if got := images.Missing(wanted); len(got) != 0 {
		t.Errorf("with all images present, missing are %v", got)
	}
	if got := images.Missing(wanted[1:]); !slices.Equal(got, wanted[:1]) {
		t.Errorf("without %s, missing are %v", wanted[0], got)
	}
}
