"""Numbers only: Legendre basis, Gauss-Lobatto nodes, meshes of elements, and step 0 (the fit of a series to samples)."""
