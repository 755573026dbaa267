// Command pluginhost stands in for the Nomad client: it launches a task driver
// plugin exactly as Nomad does and runs job files with it. Called as "nomad", or
// with a verb of Nomad's command line, it understands the part of that command
// line which tests and demos need. See README.md.
package main

import (
	"os"
	"path/filepath"

	"pluginhost/internal/cli"
)

func main() {
	os.Exit(cli.Main(filepath.Base(os.Args[0]), os.Args[1:], os.Stdout, os.Stderr))
}
