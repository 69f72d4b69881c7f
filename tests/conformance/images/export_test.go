package images

// PackForTest writes an archive of one image, with one layer of the files below dir.
func PackForTest(name, dir, work, out string) error {
	layer, err := packLayer(dir, work)
	if err != nil {
		return err
	}
	a := &archive{}
	if err := a.addImage(name, recipe{user: "7"}, []blob{layer}); err != nil {
		return err
	}
	var order []string
	for digest := range a.blobs {
		order = append(order, digest)
	}
	return a.write(out, order)
}
