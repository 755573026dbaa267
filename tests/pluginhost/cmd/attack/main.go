// Command attack tries to break out of a task's sandbox, one attack after the other, and
// reports what stopped each of them. See README.md, "Attacks".
package main

import (
	"os"

	"pluginhost/internal/attack"
)

func main() {
	os.Exit(attack.Main(os.Args[1:], os.Stdout, os.Stderr))
}
