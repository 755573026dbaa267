# Development shell: cargo for this platform, Go for tests/pluginhost, the linters of `make lint`, and tools to build and inspect
# packages. `nix build` makes the static plugin; `make test` and nixos-tests/run set up rustup and Debian's tools themselves, and
# need a Debian machine.
{ pkgs }:
pkgs.mkShell {
  packages = [
    pkgs.cargo
    pkgs.cargo-deny
    pkgs.clippy
    pkgs.deadnix
    pkgs.dpkg
    pkgs.go
    pkgs.jq
    pkgs.nfpm
    pkgs.nixfmt
    pkgs.python3
    pkgs.rpm
    pkgs.rust-analyzer
    pkgs.rustc
    pkgs.rustfmt
    pkgs.shellcheck
  ];
}
