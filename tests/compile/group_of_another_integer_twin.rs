fn main() {
    let group: u32 = 1004;
    let _guard = privilege_guard::GroupGuard::assume_on_thread(group);
}
