package taskenv

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"pluginhost/internal/allocdir"

	nomad "github.com/hashicorp/nomad/api"
)

// RenderTemplates writes a task's templates into its directories and returns the
// variables that those with env = true define.
func RenderTemplates(t *nomad.Task, env *Env, dir allocdir.TaskDir) (map[string]string, error) {
	vars := map[string]string{}
	client := clientPaths(env, dir)
	for _, tm := range t.Templates {
		out, err := renderTemplate(*tm.EmbeddedTmpl, env.Vars)
		if err != nil {
			return nil, fmt.Errorf("template %q: %w", *tm.DestPath, err)
		}
		if *tm.Envvars {
			if err := parseEnvFile(out, vars); err != nil {
				return nil, fmt.Errorf("template %q: %w", *tm.DestPath, err)
			}
		}
		if err := writeTemplate(tm, client, dir, out); err != nil {
			return nil, fmt.Errorf("template %q: %w", *tm.DestPath, err)
		}
	}
	return vars, nil
}

// renderTemplate supports the part of consul-template's language that needs no
// server: env, and the functions of text/template. Any other function fails.
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

// clientPaths is the task's environment with the real directories instead of the
// mounts: that is where the client writes.
func clientPaths(env *Env, dir allocdir.TaskDir) *Env {
	c := &Env{Vars: maps.Clone(env.Vars), node: env.node}
	c.Vars["NOMAD_ALLOC_DIR"], c.Vars["NOMAD_TASK_DIR"], c.Vars["NOMAD_SECRETS_DIR"] = dir.Shared, dir.Local, dir.Secrets
	return c
}

func writeTemplate(tm *nomad.Template, client *Env, dir allocdir.TaskDir, out string) error {
	path := client.Expand(*tm.DestPath)
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir.Dir, path)
	}
	path = filepath.Clean(path)
	// In the task's directory or the shared one; os.Root keeps links that a task
	// left there from leading out.
	base := ""
	for _, b := range []string{dir.Dir, dir.Shared} {
		if strings.HasPrefix(path, b+"/") {
			base = b
		}
	}
	if base == "" {
		return fmt.Errorf("%s escapes the alloc directory", path)
	}
	perms, err := strconv.ParseUint(*tm.Perms, 8, 12)
	if err != nil {
		return fmt.Errorf("perms %q is not an octal mode", *tm.Perms)
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
	if tm.Uid == nil && tm.Gid == nil {
		return nil
	}
	return f.Chown(orUnchanged(tm.Uid), orUnchanged(tm.Gid))
}

// orUnchanged is the id for chown(2), which leaves the owner alone for -1.
func orUnchanged(id *int) int {
	if id == nil {
		return -1
	}
	return *id
}

// mkdirAllIn makes the directories of rel inside root.
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
