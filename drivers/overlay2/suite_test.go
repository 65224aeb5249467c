package overlay2_test

import (
	"plyfs/drivers/drivertest"
	"plyfs/drivers/overlay2"
)

const (
	oneLink = "the link count is that of the file in the layer, which has both names"
	exdev   = "without redirect_dir a directory of an image cannot be renamed (EXDEV): what is mounted stays readable by all"
	broken  = "without index a copied-up file is a new one, and its other names show the old"
)

func suite() drivertest.Suite {
	return drivertest.Suite{
		Factory:   overlay2.Factory(),
		Base:      drivertest.Scratch,
		SmallBase: drivertest.SmallScratch,
		Abilities: drivertest.Abilities{ReadOnlyImages: true, ReadOnlyGet: true},
		Differences: []drivertest.Difference{
			{Case: "Layers/rename-dir", Reason: exdev},
			{Case: "Layers/rename-new-dir", Reason: exdev},
			{Case: "Layers/hardlink-across-layers", Reason: broken},
			{Case: "Layers/hardlink-copy-up", Reason: broken},
			{Case: "Layers/hardlink-remove-one", Reason: oneLink},
		},
	}
}
