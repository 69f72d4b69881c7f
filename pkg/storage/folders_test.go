package storage_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/pkg/remedy"
	"github.com/atollhq/atoll/pkg/storage"
)

// disk is a real disk whose free space and mounts a test may set.
type disk struct {
	free   int64
	mounts []storage.Mount
}

func (d *disk) Free(string) (int64, error)       { return d.free, nil }
func (d *disk) Mounts() ([]storage.Mount, error) { return d.mounts, nil }
func rootDisk() *disk {
	return &disk{free: 1 << 40, mounts: []storage.Mount{{Device: "8:1", Root: "/", Point: "/"}}}
}
func open(t *testing.T, d storage.Disk) (storage.Folders, string) {
	t.Helper()
	base := filepath.Join(t.TempDir(), "a", "storage")
	f, err := storage.OpenFolders(base, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, base
}

func TestFolderOfAVolume(t *testing.T) {
	f, base := open(t, rootDisk())
	if info, err := os.Stat(base); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the folder of all volumes: %v, %v", info.Mode(), err)
	}
	path, err := f.Create("shop/pvc-1_shop_data")
	if err != nil {
		t.Fatal(err)
	}
	if path != filepath.Join(base, "shop/pvc-1_shop_data") {
		t.Errorf("path %s", path)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o777 {
		t.Errorf("the volume: %v, %v", info.Mode(), err)
	}
	write(t, filepath.Join(path, "kept"))
	if _, err := f.Create("shop/pvc-1_shop_data"); err != nil {
		t.Errorf("made again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(path, "kept")); err != nil {
		t.Error("making a volume again lost its content")
	}

	found, err := f.Remove("pvc-1", path)
	if err != nil || !found {
		t.Fatalf("found %v, %v", found, err)
	}
	if _, err := os.Stat(filepath.Dir(path)); !os.IsNotExist(err) {
		t.Errorf("the empty folder of the namespace stays: %v", err)
	}
	trash, err := os.ReadDir(filepath.Join(base, ".deleting"))
	if err != nil || len(trash) != 1 {
		t.Fatalf("moved aside: %v, %v", trash, err)
	}
	if found, err := f.Remove("pvc-1", path); err != nil || found {
		t.Errorf("removed again: found %v, %v", found, err)
	}
	if err := f.EmptyTrash(); err != nil {
		t.Fatal(err)
	}
	if trash, _ := os.ReadDir(filepath.Join(base, ".deleting")); len(trash) != 0 {
		t.Errorf("not deleted: %v", trash)
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNamesFitTheDisk(t *testing.T) {
	pv := "pvc-" + strings.Repeat("1", 36)
	name := storage.FolderName(pv, strings.Repeat("n", 63), strings.Repeat("c", 253))
	f, _ := open(t, rootDisk())
	path, err := f.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := storage.VolumeOf(filepath.Base(path)); !ok || got != pv {
		t.Errorf("volume %q, %v", got, ok)
	}
	if found, err := f.Remove(pv, path); err != nil || !found {
		t.Errorf("found %v, %v", found, err)
	}
}

// A volume object can be edited by hand, and a pod can put any link into its own folder.
func TestRemoveTouchesNothingElse(t *testing.T) {
	d := rootDisk()
	f, base := open(t, d)
	outside := filepath.Join(filepath.Dir(base), "outside")
	write(t, filepath.Join(outside, "precious"))
	write(t, filepath.Join(base, "pvc-2_shop_other", "precious"))
	if err := os.Symlink(outside, filepath.Join(base, "pvc-3_shop_link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(base, "linkdir")); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(outside, "pvc-4_a_b", "precious"))

	for _, row := range []struct{ name, pv, path string }{
		{"another place", "outside", outside},
		{"out of the folder", "outside", base + "/../outside"},
		{"the folder itself", "pvc-1", base},
		{"root", "pvc-1", "/"},
		{"nothing", "pvc-1", ""},
		{"relative", "pvc-2", "pvc-2_shop_other"},
		{"not clean", "pvc-2", base + "//pvc-2_shop_other"},
		{"another volume's", "pvc-1", base + "/pvc-2_shop_other"},
		{"too deep", "pvc-2", base + "/a/b/pvc-2_shop_other"},
		{"trash", "pvc-2", base + "/.deleting/pvc-2_shop_other"},
		{"through a link out of the folder", "pvc-4", base + "/linkdir/pvc-4_a_b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			if found, err := f.Remove(row.pv, row.path); err == nil || found {
				t.Errorf("removed: %v, %v", found, err)
			}
		})
	}
	// A link in the place of a folder goes, what it points to stays.
	if found, err := f.Remove("pvc-3", filepath.Join(base, "pvc-3_shop_link")); err != nil || !found {
		t.Errorf("link: %v, %v", found, err)
	}
	// So do links inside of a volume.
	path, err := f.Create("pvc-5_a_b")
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"up": "../../outside", "abs": outside, "file": filepath.Join(outside, "precious")} {
		if err := os.Symlink(to, filepath.Join(path, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Remove("pvc-5", path); err != nil {
		t.Fatal(err)
	}
	if err := f.EmptyTrash(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(outside, "precious"), filepath.Join(outside, "pvc-4_a_b", "precious"), filepath.Join(base, "pvc-2_shop_other", "precious")} {
		if _, err := os.Stat(path); err != nil {
			t.Errorf("lost: %v", err)
		}
	}
}

func TestInUse(t *testing.T) {
	const path = "/var/lib/atoll/storage/pvc-1_a_b"
	plain := []storage.Mount{{"8:1", "/", "/"}, {"0:5", "/", "/proc"}}
	own := append(slices.Clone(plain), storage.Mount{Device: "8:2", Root: "/", Point: "/var/lib/atoll/storage"})
	for _, row := range []struct {
		name   string
		mounts []storage.Mount
		want   string // part of the error
	}{
		{"nobody", plain, ""},
		{"a pod", append(slices.Clone(plain), storage.Mount{"8:1", path, "/var/lib/kubelet/pods/1/volumes/kubernetes.io~local-volume/pvc-1"}), "still in use: mounted at /var/lib/kubelet/pods/1"},
		{"a pod, on a disk of its own", append(slices.Clone(own), storage.Mount{"8:2", "/pvc-1_a_b", "/var/lib/kubelet/pods/1/x"}), "still in use"},
		{"a subfolder in a pod", append(slices.Clone(plain), storage.Mount{"8:1", path + "/sub", "/mnt/x"}), "still in use"},
		{"a pod with the same path of another disk", append(slices.Clone(plain), storage.Mount{"8:9", path, "/mnt/x"}), ""},
		{"a neighbour", append(slices.Clone(plain), storage.Mount{"8:1", path + "2", "/mnt/x"}), ""},
		{"a mount inside", append(slices.Clone(plain), storage.Mount{"8:9", "/", path + "/usb"}), "mounted at " + path + "/usb"},
		{"a mount itself", append(slices.Clone(plain), storage.Mount{"8:9", "/", path}), "mounted at " + path},
		{"no table", nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := storage.InUse(row.mounts, path)
			if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v, want %q", err, row.want)
			}
			if err != nil && remedy.Of(err) == "" {
				t.Error("no remedy")
			}
		})
	}
}

func TestVolumeInUseStays(t *testing.T) {
	d := rootDisk()
	f, _ := open(t, d)
	path, err := f.Create("pvc-1_a_b")
	if err != nil {
		t.Fatal(err)
	}
	d.mounts = append(d.mounts, storage.Mount{Device: "8:1", Root: path, Point: "/var/lib/kubelet/pods/1/x"})
	if found, err := f.Remove("pvc-1", path); err == nil || found {
		t.Errorf("removed: %v, %v", found, err)
	}
	d.mounts = d.mounts[:1]
	if found, err := f.Remove("pvc-1", path); err != nil || !found {
		t.Errorf("not removed: %v, %v", found, err)
	}
}

func TestRoom(t *testing.T) {
	d := rootDisk()
	d.free = 10 << 30
	f, base := open(t, d)
	if err := f.RoomFor(10 << 30); err != nil {
		t.Error(err)
	}
	err := f.RoomFor(10<<30 + 1)
	if err == nil || !strings.Contains(err.Error(), base) || remedy.Of(err) == "" {
		t.Errorf("%v, %s", err, remedy.Of(err))
	}
}

func TestOrphans(t *testing.T) {
	f, base := open(t, rootDisk())
	for _, name := range []string{"pvc-1_a_b", "pvc-2_a_b", "ns/pvc-3_ns_b", "ns/pvc-4_ns_b", "by-hand_x", "something", "pvc-5_new_one", ".deleting/pvc-6_a_b"} {
		write(t, filepath.Join(base, name, "file"))
		if old := time.Now().Add(-2 * time.Hour); name != "pvc-5_new_one" {
			if err := os.Chtimes(filepath.Join(base, name), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := f.Orphans(map[string]bool{"pvc-1": true, "pvc-3": true}, time.Hour)
	if want := []string{base + "/ns/pvc-4_ns_b", base + "/pvc-2_a_b"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

func TestMountTable(t *testing.T) {
	got, err := storage.ParseMount(`36 35 98:0 /mnt1/a\040b /mnt2/x\134y rw,noatime master:1 - ext3 /dev/root rw`)
	if want := (storage.Mount{Device: "98:0", Root: "/mnt1/a b", Point: `/mnt2/x\y`}); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := storage.ParseMount("36 35"); err == nil {
		t.Error("half a line was taken")
	}
	mounts, err := storage.RealDisk.Mounts()
	if err != nil || !slices.ContainsFunc(mounts, func(m storage.Mount) bool { return m.Point == "/" }) {
		t.Errorf("this machine's mounts: %v, %v", mounts, err)
	}
	if free, err := storage.RealDisk.Free(t.TempDir()); err != nil || free <= 0 {
		t.Errorf("free %d, %v", free, err)
	}
}
