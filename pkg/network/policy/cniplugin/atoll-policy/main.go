// Command atoll-policy is the CNI plugin of package cniplugin. It is built static and carried inside atoll's binary.
package main

import (
	"os"

	"github.com/atollhq/atoll/pkg/network/policy/cniplugin"
)

func main() { os.Exit(cniplugin.Main(os.Getenv, os.Stdin, os.Stdout, cniplugin.Patience)) }
