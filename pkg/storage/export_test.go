package storage

import (
	"context"
	"time"
)

// Inner parts for the tests.
var (
	FolderName = folderName
	VolumeOf   = volumeOf
	InUse      = inUse
	ParseMount = parseMount
)

// Folders is the folder that holds the volumes.
type Folders struct{ *folders }

func OpenFolders(base string, disk Disk) (Folders, error) {
	f, err := openFolders(base, disk)
	return Folders{f}, err
}

func (f Folders) Create(name string) (string, error)   { return f.create(name) }
func (f Folders) Remove(pv, path string) (bool, error) { return f.remove(pv, path) }
func (f Folders) EmptyTrash() error                    { return f.emptyTrash(context.Background()) }
func (f Folders) RoomFor(bytes int64) error            { return f.roomFor(bytes) }
func (f Folders) Orphans(known map[string]bool, d time.Duration) ([]string, error) {
	return f.orphans(known, d)
}

// RealDisk asks the kernel.
var RealDisk Disk = osDisk{}
