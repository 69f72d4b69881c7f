package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mountData puts the node's data disk on /var, when it has one of its own, and applies ReadOnly.
func mountData(s Spec) error {
	target := filepath.Join(s.Root, "var")
	var flags uintptr // container images need set-user-id files, so no MS_NOSUID
	if s.ReadOnly {
		flags = unix.MS_RDONLY
	}
	if s.DataDisk == "" {
		if !s.ReadOnly {
			return nil
		}
		if err := mount(target, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		return mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
	}
	loop, err := attachLoop(s.DataDisk)
	if err != nil {
		return err
	}
	defer loop.Close()                                                    // the mount keeps it; it is freed by itself when the mount goes
	return mount(loop.Name(), target, "ext4", flags, "errors=remount-ro") // the option is what distributions set
}

// attachLoop binds image to a free loop device that frees itself on last close.
func attachLoop(image string) (*os.File, error) {
	file, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open data disk: %w", err)
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open data disk: %w", err)
	}
	defer control.Close()
	for range 50 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(config.Info.File_name[:len(config.Info.File_name)-1], image)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) { // busy: somebody else took it in between
			return nil, fmt.Errorf("attach %s to %s: %w", image, loop.Name(), err)
		}
	}
	return nil, errors.New("no free loop device in 50 attempts")
}
