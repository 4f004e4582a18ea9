# Completion of the command arclab for zsh:    eval "$(arclab completion zsh)"    (after compinit)
_arclab() {
    local -a found open closed
    found=("${(@f)$("${words[1]}" completion words "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    open=("${(@M)found:#*[=.]}")
    closed=("${(@)found:#*[=.]}")
    closed=("${(@)closed:#}")
    if (( ${#open} + ${#closed} == 0 )); then
        _files
        return
    fi
    (( ${#open} )) && compadd -S '' -- "${open[@]}"
    (( ${#closed} )) && compadd -- "${closed[@]}"
}
compdef _arclab arclab
