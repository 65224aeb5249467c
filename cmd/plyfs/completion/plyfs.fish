# fish completion for plyfs. `plyfs completion fish` prints this file.
# The program itself says what can come next: a line with the kind, then candidates.

function __plyfs_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l current (commandline --current-token --cut-at-cursor)
    set -l out ($words[1] __complete $words[2..-1] $current 2>/dev/null)
    switch "$out[1]"
        case :file
            __fish_complete_path $current
        case :dir
            __fish_complete_directories $current ''
        case :word
            test (count $out) -gt 1; and printf '%s\n' $out[2..-1]
    end
end

complete --command plyfs --no-files --arguments '(__plyfs_complete)'
