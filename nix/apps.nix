# `nix run .#NAME`.
{
  lib,
  pkgs,
  self,
  system,
  docs,
}:
let
  app = name: description: text: {
    type = "app";
    program = lib.getExe (pkgs.writeShellApplication { inherit name text; });
    meta = { inherit description; };
  };
  demo = if pkgs.stdenv.hostPlatform.isx86_64 then "demo" else "demo-aarch64";
in
{
  # By name instead of store path, so that listing or checking the apps does not evaluate a whole system.
  demo = app "demo" "Boot a NixOS machine with Nomad, the driver and the example jobs" ''
    exec nix run "${self}#nixosConfigurations.${demo}.config.system.build.vm" -- "$@"
  '';

  # A derivation cannot build itself a second time, so this cannot be a check.
  check-reproducible =
    app "check-reproducible" "Build every package a second time and compare the bytes"
      ''
        failed=()
        for name in ${lib.escapeShellArgs (lib.attrNames self.packages.${system})}; do
          echo "== $name"
          package="${self}#packages.${system}.$name"
          nix build --no-link "$package"
          nix build --no-link --rebuild "$package" || failed+=("$name")
        done
        if [ ''${#failed[@]} -gt 0 ]; then
          echo "not the same a second time: ''${failed[*]}" >&2
          exit 1
        fi
        echo "every package came out the same a second time"
      '';

  update-docs =
    app "update-docs" "Write the module's options into docs/nixos.md of the current folder"
      ''
        file=docs/nixos.md
        [ -e "$file" ] || { echo "there is no $file here: run this at the top of the checkout" >&2; exit 1; }
        awk -f ${./splice.awk} -v options=${docs} "$file" > "$file.new"
        mv "$file.new" "$file"
      '';
}
