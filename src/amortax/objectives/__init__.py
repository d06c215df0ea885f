"""A loss that does: takes (joint, guide, batch), gives nats per unit to descend and the bound it reports."""
