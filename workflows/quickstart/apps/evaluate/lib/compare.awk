# Compares two VCF files by position, alleles and genotype.
/^#/ { next }
{ variant = $1 " " $2 " " $4 " " $5 " " $10 }
NR == FNR { called[variant]; n++; next }
{ if (variant in called) shared++; else missed++ }
END { printf "called %d\nshared %d\nonly called %d\nonly truth %d\n", n, shared, n - shared, missed }
