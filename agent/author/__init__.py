"""The workstation's side: make packs, offer them to devices, and ask devices from afar."""
