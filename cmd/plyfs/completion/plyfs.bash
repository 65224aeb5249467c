# bash completion for plyfs. `plyfs completion bash` prints this file.
# The program itself says what can come next: a line with the kind, then candidates.

_plyfs() {
	local current=$2 prefix kind
	local -a words out
	# Words by blanks alone: bash also breaks them at : and =, which image names have.
	read -ra words <<<"${COMP_LINE:0:COMP_POINT}"
	[[ ${COMP_LINE:0:COMP_POINT} == *[[:blank:]] ]] && words+=('')
	mapfile -t out < <("${1/#\~/$HOME}" __complete "${words[@]:1}" 2>/dev/null)
	kind=${out[0]}
	COMPREPLY=()
	case $kind in
	:file)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -f -- "$current")
		;;
	:dir)
		compopt -o filenames 2>/dev/null
		mapfile -t COMPREPLY < <(compgen -d -- "$current")
		;;
	:word)
		COMPREPLY=("${out[@]:1}")
		COMPREPLY=("${COMPREPLY[@]%%$'\t'*}")
		# bash replaces only what stands behind the last of its breaks.
		current=${words[-1]}
		prefix=${current%"${current##*[:=]}"}
		COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
		;;
	esac
}

complete -F _plyfs plyfs
