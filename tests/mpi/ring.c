/* Each rank adds its share to what comes round, and all learn the sum; then the ranks of a node look at one memory together. */
#include <mpi.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    int rank, ranks, token = 0, together = 0;
    double share, sum;
    MPI_Comm node;
    MPI_Win window;
    int *seen;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    share = 1.0 / (1 + rank);
    MPI_Allreduce(&share, &sum, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    if (rank > 0)
        MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    token += rank;
    if (rank + 1 < ranks)
        MPI_Send(&token, 1, MPI_INT, rank + 1, 0, MPI_COMM_WORLD);

    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &together);
    MPI_Win_allocate_shared(sizeof(int), sizeof(int), MPI_INFO_NULL, node, &seen, &window);
    MPI_Win_fence(0, window);
    *seen = 1;
    MPI_Win_fence(0, window);
    if (rank == ranks - 1) {
        int i, neighbours = 0, unit;
        MPI_Aint size;
        int *theirs;
        for (i = 0; i < together; i++) {
            MPI_Win_shared_query(window, i, &size, &unit, &theirs);
            neighbours += *theirs;
        }
        printf("ranks %d, token %d, sum %.6f, in one memory %d\n", ranks, token, sum, neighbours);
    }
    MPI_Win_fence(0, window);
    MPI_Win_free(&window);
    MPI_Finalize();
    return 0;
}
