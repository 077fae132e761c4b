//! The verbs layer on a real device, `rxe` or other. Needs one at the address in DAFS_RDMA_ADDRESS
//! (10.9.9.1 unless set), and fails where there is none.

mod pair;
mod wire;
