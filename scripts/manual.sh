#!/bin/sh
# Writes the man pages and the shell completions of the commands to FOLDER (default
# target/manual); with --install, copies them below PREFIX (default /usr/local):
#   PREFIX/share/man/man1/NAME.1 and NAME-SUBCOMMAND.1
#   PREFIX/share/bash-completion/completions/NAME
#   PREFIX/share/zsh/site-functions/_NAME
#   PREFIX/share/fish/vendor_completions.d/NAME.fish
# Usage: scripts/manual.sh [FOLDER] | scripts/manual.sh --install [PREFIX]
# RW_BIN set: what is built in that folder is used, and nothing is built.
set -eu

case "${1:-}" in
-h | --help)
	sed -n '2,10s/^# \{0,1\}//p' "$0"
	exit 0
	;;
--install)
	prefix=${2:-/usr/local}
	folder=
	;;
-*)
	echo "manual.sh: unknown option $1; see --help" >&2
	exit 2
	;;
*)
	prefix=
	folder=${1:-}
	;;
esac

absolute() {
	case "$1" in
	"" | /*) echo "$1" ;;
	*) echo "$PWD/$1" ;;
	esac
}

folder=$(absolute "$folder")
prefix=$(absolute "$prefix")
cd "$(dirname "$0")/.."
if [ -n "$prefix" ]; then
	# A new one: what an earlier version wrote is not to be installed.
	folder=$(mktemp -d)
	trap 'rm -rf "$folder"' EXIT
fi
folder=${folder:-$PWD/target/manual}
if [ -n "${RW_BIN:-}" ]; then
	"$RW_BIN/examples/manual" "$folder"
else
	cargo run --quiet --example manual -- "$folder"
fi
if [ -z "$prefix" ]; then
	echo "$folder"
	exit 0
fi

share=$prefix/share
mkdir -p "$share/man/man1" "$share/bash-completion/completions" \
	"$share/zsh/site-functions" "$share/fish/vendor_completions.d"
cp "$folder"/man/*.1 "$share/man/man1/"
for completion in "$folder"/completions/*.bash; do
	name=$(basename "$completion" .bash)
	cp "$completion" "$share/bash-completion/completions/$name"
	cp "$folder/completions/_$name" "$share/zsh/site-functions/"
	cp "$folder/completions/$name.fish" "$share/fish/vendor_completions.d/"
done
echo "$share"
