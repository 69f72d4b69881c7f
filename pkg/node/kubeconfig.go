package node

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"github.com/atollhq/atoll/pkg/atomicfile"
	"github.com/atollhq/atoll/pkg/config"
	"github.com/atollhq/atoll/pkg/pki"
	"github.com/atollhq/atoll/pkg/remedy"
)

// writeAdminKubeconfig writes the file that people use. It holds its certificates, so that it can be carried elsewhere; it is
// written again when they are renewed.
func writeAdminKubeconfig(cfg config.Config, p paths) error {
	creds, err := pki.EmbedFiles(p.ServerCA.Cert, p.Admin)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.Kubeconfig), 0o755); err != nil {
		return remedy.Wrap(fmt.Errorf("make folder for the kubeconfig: %w", err), "make it writable, or set --write-kubeconfig")
	}
	if _, err := atomicfile.WriteIfChanged(cfg.Kubeconfig, pki.Kubeconfig(cfg.LocalURL(), "admin", creds), os.FileMode(cfg.KubeconfigMode)); err != nil {
		return remedy.Wrap(err, "make %s writable, or set --write-kubeconfig", cfg.Kubeconfig)
	}
	if cfg.KubeconfigGroup == "" {
		return nil
	}
	gid, err := groupID(cfg.KubeconfigGroup)
	if err != nil {
		return remedy.Wrap(err, "create the group, or set --write-kubeconfig-group to one that exists")
	}
	if err := os.Chown(cfg.Kubeconfig, -1, gid); err != nil {
		return fmt.Errorf("give the kubeconfig to its group: %w", err)
	}
	return nil
}

func groupID(name string) (int, error) {
	if gid, err := strconv.Atoi(name); err == nil && gid >= 0 {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, err
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("group %s has no number", name), err)
	}
	return gid, nil
}
