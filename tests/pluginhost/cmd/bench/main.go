// Command bench measures driver plugins on this host: starts, memory, and what
// running tasks cost. See docs/performance.md.
package main

import (
	"os"

	"pluginhost/internal/bench"
)

func main() {
	os.Exit(bench.Main(os.Args[1:], os.Stdout, os.Stderr))
}
