# The module's options as Markdown, for docs/nixos.md.
{ lib, pkgs }:
let
  evaluated = lib.evalModules {
    modules = [
      ./module.nix
      {
        # Only the options: the settings refer to options of NixOS, which is not evaluated here.
        _module.check = false;
        _module.args.pkgs = pkgs;
      }
    ];
  };
  options = lib.filter (
    option: option.visible && !option.internal && lib.hasPrefix "services." option.name
  ) (lib.optionAttrSetToDocList evaluated.options);
  text = value: value.text or value;
  # A default or an example of several lines becomes a code block.
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
  # The text must not depend on the packages that it mentions.
  builtins.unsafeDiscardStringContext (lib.concatMapStrings render options)
)
