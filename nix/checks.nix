# The checks of `nix flake check`, except the VM tests.
{
  lib,
  pkgs,
  module,
  packages,
  docs,
  system,
  # All VM tests, by name.
  tests,
}:
let
  plugin = packages.default;

  # Runs another command with the sources and crates of a build of the plugin.
  cargo =
    build: name: tools: command:
    build.overrideAttrs (old: {
      pname = "nomad-driver-exec2-${name}";
      nativeBuildInputs = old.nativeBuildInputs ++ tools;
      buildPhase = ''
        runHook preBuild
        ${command}
        runHook postBuild
      '';
      doCheck = false;
      installPhase = "touch $out";
      postInstall = "";
      doInstallCheck = false;
      dontFixup = true;
      meta = { };
    });
  target = "--offline --locked --target ${plugin.stdenv.hostPlatform.rust.rustcTarget}";
in
{
  package = plugin;
  inherit (packages) deb rpm release;

  tests = cargo plugin "tests" [ ] "cargo test ${target}";
  # pkgs.clippy has the standard library of its own platform, not the one for musl.
  clippy = cargo packages.nomad-driver-exec2-dynamic "clippy" [
    pkgs.clippy
  ] "cargo clippy --offline --locked --all-targets -- -D warnings";
  fmt = cargo plugin "fmt" [ pkgs.rustfmt ] "cargo fmt --all --check";
  deny = cargo plugin "deny" [
    pkgs.cargo-deny
  ] "cargo-deny --offline --locked check bans licenses sources";

  # The symbol table was removed, not only debug information.
  stripped = pkgs.runCommand "exec2-stripped" { nativeBuildInputs = [ pkgs.binutils ]; } ''
    readelf --section-headers --wide ${lib.getExe plugin} > $out
    grep -q '\.text' $out
    if grep '\.symtab' $out; then exit 1; fi
  '';

  payload = pkgs.runCommand "exec2-payload" {
    nativeBuildInputs = [
      pkgs.dpkg
      pkgs.python3
      pkgs.rpm
    ];
  } "python3 ${../packaging/check_payload.py} ${packages.deb}/*.deb ${packages.rpm}/*.rpm > $out";

  # The options on the page are those of the module.
  docs = pkgs.runCommand "exec2-docs" { } ''
    awk -f ${./splice.awk} -v options=${docs} ${../docs/nixos.md} > page
    diff -u ${../docs/nixos.md} page || { echo "docs/nixos.md is out of date: nix run .#update-docs"; exit 1; }
    touch $out
  '';
}
// import ./vm-checks.nix {
  inherit
    lib
    pkgs
    module
    tests
    ;
}
// import ./module-checks.nix {
  inherit
    lib
    pkgs
    module
    plugin
    system
    ;
}
