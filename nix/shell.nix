# To work on the sources: cargo for this platform, Go for tests/pluginhost, the linters of `make lint`, and what packs and looks into
# packages. The static plugin is `nix build`; `make test` and nixos-tests/run set up rustup and Debian's tools for themselves, and
# are for a Debian machine.
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
