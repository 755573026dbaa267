# The module's options as Markdown, for docs/nixos.md.
{ lib, pkgs }:
let
  evaluated = lib.evalModules {
    modules = [
      ./module.nix
      {
        # The options alone: what the module sets belongs to NixOS' modules, which are not here.
        _module.check = false;
        _module.args.pkgs = pkgs;
      }
    ];
  };
  options = lib.filter (
    option: option.visible && !option.internal && lib.hasPrefix "services." option.name
  ) (lib.optionAttrSetToDocList evaluated.options);
  text = value: value.text or value;
  # A default or an example of several lines is a block of its own.
  code =
    title: value:
    let
      shown = lib.removeSuffix "\n" (text value);
    in
    if lib.length (lib.splitString "\n" shown) > 1 then
      "${title}:\n\n```nix\n${shown}\n```\n\n"
    else
      "${title}: `${shown}`\n\n";
  render =
    option:
    "### ${option.name}\n\n"
    + "${lib.trim (text option.description)}\n\n"
    + "Type: ${option.type}\n\n"
    + lib.optionalString (option ? default) (code "Default" option.default)
    + lib.optionalString (option ? example) (code "Example" option.example);
in
pkgs.writeText "options.md" (
  # References to packages are of no use in a text.
  builtins.unsafeDiscardStringContext (lib.concatMapStrings render options)
)
