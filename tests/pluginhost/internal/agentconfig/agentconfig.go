// Package agentconfig reads the part of a Nomad agent's configuration that the
// host uses.
package agentconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"pluginhost/internal/hcleval"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Config is what the host uses of an agent's configuration. The rest is accepted
// and ignored.
type Config struct {
	DataDir   string
	PluginDir string
	Name      string
	LogLevel  string
	MountsDir string
	TotalCPU  uint64                    // client.cpu_total_compute, MHz
	Meta      map[string]string         // client.meta
	Plugins   map[string]map[string]any // plugin blocks' config, by label
	// HostVolumes are client.host_volume, by label.
	HostVolumes map[string]HostVolume
}

// HostVolume is a directory that jobs may mount.
type HostVolume struct {
	Path     string
	ReadOnly bool
}

// Load merges files and directories of .hcl and .json files, in order.
func Load(paths []string) (*Config, error) {
	cfg := &Config{LogLevel: "INFO", Meta: map[string]string{}, Plugins: map[string]map[string]any{}, HostVolumes: map[string]HostVolume{}}
	for _, path := range paths {
		files, err := configFiles(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			raw, err := readFile(file)
			if err == nil {
				err = cfg.merge(raw)
			}
			if err != nil {
				return nil, fmt.Errorf("failed to load %s: %w", file, err)
			}
		}
	}
	if cfg.DataDir != "" {
		cfg.SetDataDir(cfg.DataDir)
	}
	return cfg, nil
}

// SetDataDir sets the directories that depend on the data directory.
func (c *Config) SetDataDir(dir string) {
	c.DataDir = dir
	if c.PluginDir == "" {
		c.PluginDir = filepath.Join(dir, "plugins")
	}
	if c.MountsDir == "" {
		// As in Nomad: beside the data directory, not in it.
		c.MountsDir = filepath.Join(filepath.Dir(dir), "alloc_mounts")
	}
}

// configFiles returns path, or the configuration files in it if it is a directory.
func configFiles(path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".hcl" || ext == ".json" {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

// readFile turns HCL or JSON into plain data.
func readFile(path string) (map[string]any, error) {
	src, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if filepath.Ext(path) == ".json" {
		var raw map[string]any
		err := json.Unmarshal(src, &raw)
		return raw, err
	}
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return nil, hcleval.DiagError(diags)
	}
	return (&hcleval.Evaluator{}).Plain(file.Body.(*hclsyntax.Body))
}

func (c *Config) merge(raw map[string]any) error {
	for key, dst := range map[string]*string{
		"data_dir": &c.DataDir, "plugin_dir": &c.PluginDir, "name": &c.Name, "log_level": &c.LogLevel,
	} {
		if v, ok := raw[key]; ok {
			s, ok := v.(string)
			if !ok {
				return fmt.Errorf("%s: %v is not a string", key, v)
			}
			*dst = s
		}
	}
	for _, client := range objects(raw["client"]) {
		if s, ok := client["alloc_mounts_dir"].(string); ok {
			c.MountsDir = s
		}
		if v, ok := client["cpu_total_compute"]; ok {
			mhz, err := number(v)
			if err != nil {
				return fmt.Errorf("client.cpu_total_compute: %w", err)
			}
			c.TotalCPU = uint64(mhz)
		}
		for _, volumes := range objects(client["host_volume"]) {
			for label, blocks := range volumes {
				for _, block := range objects(blocks) {
					path, _ := block["path"].(string)
					if !filepath.IsAbs(path) {
						return fmt.Errorf("client.host_volume %q: path %v is not absolute", label, block["path"])
					}
					readOnly, _ := block["read_only"].(bool)
					c.HostVolumes[label] = HostVolume{Path: path, ReadOnly: readOnly}
				}
			}
		}
		for _, meta := range objects(client["meta"]) {
			for k, v := range meta {
				c.Meta[k] = fmt.Sprint(v)
			}
		}
	}
	for _, plugins := range objects(raw["plugin"]) {
		for _, label := range slices.Sorted(maps.Keys(plugins)) {
			if c.Plugins[label] == nil {
				c.Plugins[label] = map[string]any{}
			}
			for _, block := range objects(plugins[label]) {
				for _, config := range objects(block["config"]) {
					// A later file's options replace all earlier ones.
					if len(config) > 0 {
						c.Plugins[label] = maps.Clone(config)
					}
				}
			}
		}
	}
	return nil
}

// objects returns the blocks of v: HCL and JSON have several forms for one or more.
func objects(v any) []map[string]any {
	switch t := v.(type) {
	case map[string]any:
		return []map[string]any{t}
	case []any:
		var out []map[string]any
		for _, e := range t {
			out = append(out, objects(e)...)
		}
		return out
	}
	return nil
}

func number(v any) (float64, error) {
	switch n := v.(type) {
	case int64:
		return float64(n), nil
	case float64:
		return n, nil
	}
	return 0, fmt.Errorf("%v is not a number", v)
}
