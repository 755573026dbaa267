package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"
)

// renderTemplates writes a task's templates into its folders and returns the
// variables that those with env = true define.
func renderTemplates(t *Task, env *taskEnv, dir taskDir) (map[string]string, error) {
	vars := map[string]string{}
	client := clientPaths(env, dir)
	for _, tm := range t.Templates {
		out, err := renderTemplate(tm.Data, env.env)
		if err != nil {
			return nil, fmt.Errorf("template %q: %w", tm.Destination, err)
		}
		if tm.Env {
			if err := parseEnvFile(out, vars); err != nil {
				return nil, fmt.Errorf("template %q: %w", tm.Destination, err)
			}
		}
		if err := writeTemplate(tm, client, dir, out); err != nil {
			return nil, fmt.Errorf("template %q: %w", tm.Destination, err)
		}
	}
	return vars, nil
}

// renderTemplate runs the small part of consul-template's language that needs
// no server: env, and what the language itself has. Any other function fails.
func renderTemplate(data string, env map[string]string) (string, error) {
	lookup := func(name string) string { return env[name] }
	tm, err := template.New("template").Funcs(template.FuncMap{"env": lookup}).Parse(data)
	if err != nil {
		return "", fmt.Errorf("%w (only {{ env \"NAME\" }} is supported here)", err)
	}
	var b strings.Builder
	if err := tm.Execute(&b, nil); err != nil {
		return "", err
	}
	return b.String(), nil
}

// clientPaths is the task's environment with the real folders instead of the
// mounts: that is where the client writes.
func clientPaths(env *taskEnv, dir taskDir) *taskEnv {
	c := &taskEnv{env: map[string]string{}, node: env.node}
	for k, v := range env.env {
		c.env[k] = v
	}
	c.env["NOMAD_ALLOC_DIR"], c.env["NOMAD_TASK_DIR"], c.env["NOMAD_SECRETS_DIR"] = dir.Shared, dir.Local, dir.Secrets
	return c
}

func writeTemplate(tm Template, client *taskEnv, dir taskDir, out string) error {
	path := client.expand(tm.Destination)
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir.Dir, path)
	}
	path = filepath.Clean(path)
	// Within the task's folder or the shared one; the root keeps links that a
	// task left there from leading out.
	base := ""
	for _, b := range []string{dir.Dir, dir.Shared} {
		if strings.HasPrefix(path, b+"/") {
			base = b
		}
	}
	if base == "" {
		return fmt.Errorf("%s escapes the alloc directory", path)
	}
	perms, err := strconv.ParseUint(tm.Perms, 8, 12)
	if err != nil {
		return fmt.Errorf("perms %q is no octal mode", tm.Perms)
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer root.Close()
	rel := strings.TrimPrefix(path, base+"/")
	if err := mkdirAllIn(root, filepath.Dir(rel)); err != nil {
		return err
	}
	f, err := root.OpenFile(rel, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString(out); err != nil {
		return err
	}
	if err := f.Chmod(os.FileMode(perms)); err != nil {
		return err
	}
	if tm.UID >= 0 || tm.GID >= 0 {
		return f.Chown(tm.UID, tm.GID)
	}
	return nil
}

// mkdirAllIn makes the folders of rel inside root.
func mkdirAllIn(root *os.Root, rel string) error {
	if rel == "." {
		return nil
	}
	if err := mkdirAllIn(root, filepath.Dir(rel)); err != nil {
		return err
	}
	if err := root.Mkdir(rel, 0o755); err != nil && !os.IsExist(err) {
		return err
	}
	return nil
}

// parseEnvFile reads KEY=value lines; # starts a comment line.
func parseEnvFile(text string, into map[string]string) error {
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			return fmt.Errorf("line %q is not KEY=value", line)
		}
		if u, err := strconv.Unquote(v); err == nil {
			v = u
		}
		into[strings.TrimSpace(k)] = v
	}
	return nil
}
