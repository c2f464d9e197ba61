// The service, and beside it the slot where the next version proves itself. Both have the same settings, so that a swap
// restarts nothing; what differs is the image.
param location string
param name string
param planSku string
param instances int
param workers int
param image string
param identityId string
param identityClientId string
param deployerId string
param vaultUri string
param blobUrl string
param container string
param publicUrl string
param mailFrom string
param sharedRateLimits bool
param workspaceId string

var websiteContributor = subscriptionResourceId(
  'Microsoft.Authorization/roleDefinitions',
  'de139f84-1756-47ae-9be6-808fbbe84772'
)
var secrets = concat(
  ['SECRET_KEY', 'ENCRYPTION_KEYS', 'BOOTSTRAP_TOKEN', 'DATABASE_URL', 'SMTP_URL'],
  sharedRateLimits ? ['RATE_LIMIT_STORAGE_URL'] : []
)
var ofTheVault = [
  for secret in secrets: {
    name: secret
    value: '@Microsoft.KeyVault(SecretUri=${vaultUri}secrets/${replace(secret, '_', '-')}/)'
  }
]
var ofTheService = [
  { name: 'ENVIRONMENT', value: 'production' }
  { name: 'PORT', value: '8000' }
  { name: 'WORKERS', value: string(workers) }
  { name: 'PUBLIC_URL', value: empty(publicUrl) ? 'https://${name}.azurewebsites.net' : publicUrl }
  { name: 'MAIL_FROM', value: mailFrom }
  { name: 'REQUIRE_MFA_FOR', value: 'admin,superuser' }
  { name: 'AZURE_STORAGE_ACCOUNT_URL', value: blobUrl }
  { name: 'AZURE_STORAGE_CONTAINER', value: container }
  // Requests reach a container from an address of this block and from nowhere else: the front ends of App Service.
  { name: 'TRUSTED_PROXIES', value: '["169.254.0.0/16"]' }
]
var ofThePlatform = [
  { name: 'WEBSITES_PORT', value: '8000' }
  { name: 'WEBSITES_ENABLE_APP_SERVICE_STORAGE', value: 'false' }
  // The first start makes indexes and migrates.
  { name: 'WEBSITES_CONTAINER_START_TIME_LIMIT', value: '600' }
  // It finishes what is under way within 10 s; by default it would be killed after 5.
  { name: 'WEBSITES_CONTAINER_STOP_TIME_LIMIT', value: '30' }
  { name: 'WEBSITE_SWAP_WARMUP_PING_PATH', value: '/health/ready' }
  { name: 'WEBSITE_SWAP_WARMUP_PING_STATUSES', value: '200' }
  // Which identity the client of the blob store is.
  { name: 'AZURE_CLIENT_ID', value: identityClientId }
]
var identity = {
  type: 'UserAssigned'
  userAssignedIdentities: {
    '${identityId}': {}
  }
}
var properties = {
  serverFarmId: plan.id
  httpsOnly: true
  clientAffinityEnabled: false
  keyVaultReferenceIdentity: identityId
  siteConfig: {
    linuxFxVersion: 'DOCKER|${image}'
    acrUseManagedIdentityCreds: true
    acrUserManagedIdentityID: identityClientId
    alwaysOn: true
    ftpsState: 'Disabled'
    http20Enabled: true
    minTlsVersion: '1.2'
    scmMinTlsVersion: '1.2'
    webSocketsEnabled: false
    // Not whether the database answers: another instance would have no other database.
    healthCheckPath: '/health/live'
    appSettings: concat(ofTheService, ofThePlatform, ofTheVault)
  }
}

var told = {
  workspaceId: workspaceId
  logs: [
    {
      category: 'AppServiceConsoleLogs'
      enabled: true
    }
    {
      category: 'AppServicePlatformLogs'
      enabled: true
    }
  ]
  metrics: [
    {
      category: 'AllMetrics'
      enabled: true
    }
  ]
}

resource plan 'Microsoft.Web/serverfarms@2024-11-01' = {
  name: name
  location: location
  kind: 'linux'
  sku: {
    name: planSku
    capacity: instances
  }
  properties: {
    reserved: true
  }
}

resource site 'Microsoft.Web/sites@2024-11-01' = {
  name: name
  location: location
  kind: 'app,linux,container'
  identity: identity
  properties: properties
}

resource staging 'Microsoft.Web/sites/slots@2024-11-01' = {
  parent: site
  name: 'staging'
  location: location
  kind: 'app,linux,container'
  identity: identity
  properties: properties
}

// No passwords for publishing: who deploys signs in.
resource siteWithoutPasswords 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-11-01' = [
  for protocol in ['ftp', 'scm']: {
    parent: site
    name: protocol
    properties: {
      allow: false
    }
  }
]

resource stagingWithoutPasswords 'Microsoft.Web/sites/slots/basicPublishingCredentialsPolicies@2024-11-01' = [
  for protocol in ['ftp', 'scm']: {
    parent: staging
    name: protocol
    properties: {
      allow: false
    }
  }
]

resource mayDeploy 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(site.id, deployerId, websiteContributor)
  scope: site
  properties: {
    principalId: deployerId
    principalType: 'ServicePrincipal'
    roleDefinitionId: websiteContributor
  }
}

resource siteDiagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: site
  properties: told
}

resource stagingDiagnostics 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = {
  name: 'logs'
  scope: staging
  properties: told
}

output name string = site.name
output host string = site.properties.defaultHostName
output siteId string = site.id
