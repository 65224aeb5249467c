#compdef plyfs
# zsh completion for plyfs. `plyfs completion zsh` prints this file.
# The program itself says what can come next: a line with the kind, then candidates.

_plyfs() {
	local line
	local -a out candidates
	out=("${(@f)$(${(Q)words[1]} __complete "${(@Q)words[2,CURRENT]}" 2>/dev/null)}")
	case $out[1] in
	:file)
		_files
		;;
	:dir)
		_files -/
		;;
	:word)
		for line in "${(@)out[2,-1]}"; do
			candidates+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
		done
		_describe -V plyfs candidates
		;;
	esac
}

# Loaded by the completion system the file is the function's body; sourced, it only defines it.
if [[ ${funcstack[1]} == _plyfs ]]; then
	_plyfs "$@"
else
	compdef _plyfs plyfs
fi
