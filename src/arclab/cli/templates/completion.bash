# Completion of the command arclab for bash:    eval "$(arclab completion bash)"
_arclab() {
    local line=${COMP_LINE:0:COMP_POINT} current
    local -a words
    read -r -a words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    current=${words[-1]}
    mapfile -t COMPREPLY < <("$1" completion words "${words[@]:1}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
    # Of a word with = in it, bash replaces only what follows that sign.
    if [[ $current == *=* && $COMP_WORDBREAKS == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%=*}="}")
    fi
}
complete -o default -F _arclab arclab
