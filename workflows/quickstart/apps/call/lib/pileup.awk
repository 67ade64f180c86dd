# Piles the reads up over one shard of the reference and calls a variant where enough of them disagree with it.
# First file: one line, contig and sequence. Second file: start and sequence of each read, sorted. Positions count from 1.
NR == 1 {
    contig = $1; reference = $2
    first = int(length(reference) * shard / shards) + 1
    last = int(length(reference) * (shard + 1) / shards)
    next
}
$1 > last { exit }
{
    for (i = 1; i <= length($2); i++) {
        p = $1 + i - 1
        if (p >= first && p <= last) { depth[p]++; seen[p, substr($2, i, 1)]++ }
    }
}
END {
    for (p = first; p <= last; p++) {
        if (depth[p] < 6) continue
        own = substr(reference, p, 1); alt = ""; most = 0
        for (i = 1; i <= 4; i++) {
            base = substr("ACGT", i, 1)
            if (base != own && seen[p, base] > most) { alt = base; most = seen[p, base] }
        }
        if (most < 3 || most < 0.25 * depth[p]) continue
        genotype = (most >= 0.8 * depth[p]) ? "1/1" : "0/1"
        print contig "\t" p "\t.\t" own "\t" alt "\t.\tPASS\tDP=" depth[p] ";AO=" most "\tGT\t" genotype
    }
}
