"""Numbers only: Legendre basis, Gauss-Lobatto nodes, meshes of elements, and step 0 (a series fitted to samples)."""
