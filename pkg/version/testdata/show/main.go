// Command show prints the version that the linker stamped.
package main

import (
	"fmt"

	"github.com/atollhq/atoll/pkg/version"
)

func main() { fmt.Println(version.String()) }
