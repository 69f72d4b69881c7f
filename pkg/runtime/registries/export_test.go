package registries

// Parse and Files let tests look at the two halves of Load and Write without a disk.
var Parse = parse

// Files returns what Write writes.
func (c Config) Files() (map[string][]byte, error) { return c.files() }
