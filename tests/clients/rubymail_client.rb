# Sends one mail with the Mail gem, which uses Net::SMTP; the order is JSON on standard input.
require 'json'
require 'mail'

order = JSON.parse($stdin.read)
account = order['account']
spec = order['mail']

address = lambda do |person|
  Mail::Address.new.tap { |made| made.address = person['address']; made.display_name = person['name'] unless person['name'].empty? }.format
end

mail = Mail.new(charset: 'UTF-8') do
  from address.call(spec['from'])
  to spec['to'].map(&address)
  cc spec['cc'].map(&address) unless spec['cc'].empty?
  bcc spec['bcc'].map(&address) unless spec['bcc'].empty?
  subject spec['subject']
  if spec['html'].empty? && spec['attachment'].nil?
    body spec['text']
  else
    text_part { content_type 'text/plain; charset=UTF-8'; body spec['text'] }
    html_part { content_type 'text/html; charset=UTF-8'; body spec['html'] } unless spec['html'].empty?
  end
end
if spec['attachment']
  mail.attachments[spec['attachment']['filename']] = spec['attachment']['content'].unpack1('m')
end
mail.delivery_method(
  :smtp,
  address: account['host'], port: account['port'], user_name: account['username'], password: account['password'],
  authentication: :plain, enable_starttls_auto: account['security'] == 'starttls', tls: account['security'] == 'tls',
  openssl_verify_mode: 'peer', return_response: true
)
begin
  print mail.deliver!.string
rescue StandardError => e
  warn "#{e.class}: #{e.message}"
  exit 1
end
